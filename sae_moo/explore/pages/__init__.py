"""What is opened and passed on: report, dashboard, a folder of pictures."""

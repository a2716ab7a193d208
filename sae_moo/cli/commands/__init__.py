"""The commands, a file for each thing that people come to do."""

"""Methods held against each other: searches at one budget, judged on the test split."""

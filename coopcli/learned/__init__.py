"""What was learned: its file, and the classifier that it makes."""

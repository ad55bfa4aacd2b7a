"""What both training and evaluation score with."""

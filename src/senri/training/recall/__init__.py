"""Recall: training a memory to find facts in texts of growing length, on a frozen base."""

"""The verbs of dataset_tools.py."""

"""The HTTP application of serving.py."""

"""What is measured of models, and what is written about it."""

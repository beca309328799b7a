"""What is measured of models: tables, scores, pages and pictures."""

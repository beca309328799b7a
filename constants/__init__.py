"""Constants as text: their lines in config.py and the scripts, recipes, what is allowed, help, others' words."""

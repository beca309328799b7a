"""Model files in other formats, and the engines that run them."""

"""From list files and images to the splits that a run sees."""

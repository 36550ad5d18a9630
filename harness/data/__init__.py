"""From list files and pictures to the splits that a run sees."""

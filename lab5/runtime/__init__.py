"""Machine, files and processes: what a run stands on. It knows no image."""

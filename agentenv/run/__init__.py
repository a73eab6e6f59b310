"""What a run leaves behind, and how it is watched: run directory, records, progress display, HTML
report.
"""

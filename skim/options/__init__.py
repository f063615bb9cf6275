"""Options: declared once, held against what a user typed, explained."""

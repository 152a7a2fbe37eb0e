"""Pen strokes: reading, drawing, varying them, and which strokes write which token."""

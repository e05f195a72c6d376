"""Facts in, pictures and tables out."""

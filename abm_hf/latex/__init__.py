"""LaTeX labels: lexer, normalisation, parser, tree."""

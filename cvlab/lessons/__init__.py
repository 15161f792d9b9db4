"""One room a notebook: its helpers, its figures, its widget."""

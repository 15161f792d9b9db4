"""One room a notebook, in its order: helpers, figures, widget. A room may use earlier ones."""

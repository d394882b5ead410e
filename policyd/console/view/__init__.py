"""How the pages show what they show: templates, labels, charts, periods."""

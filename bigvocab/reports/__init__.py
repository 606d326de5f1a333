"""Named numbers and how they look: text, JSON, page."""

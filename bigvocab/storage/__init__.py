"""The bytes of a file: mapped, read ahead, dropped behind, watched, replaced whole."""

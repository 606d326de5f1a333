"""Any row task over files, in bounded memory, killed and resumed; class ranges, merge, workers."""

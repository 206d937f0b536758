"""The backends of this package: one folder each, loaded by the registry when first needed."""

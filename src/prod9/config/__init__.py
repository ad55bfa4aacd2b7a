"""From YAML to a checked configuration: loading, sections of every stage, error messages."""

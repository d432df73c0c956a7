"""One metric per file, each with unit and direction."""

"""The commands that users type: ``swarmkv_studies.cli`` is the program, and adds those of the studies."""

"""Many agents over one document: the strategies side by side, a run and what it records, pipelines."""

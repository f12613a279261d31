"""A run in other programs' formats.

```
exported           one export: which format, which files
run_tables         CSV, JSON and Parquet: the run as tables
tables             the tables and their columns
csv_file, json_file, parquet_file   what writes a table
perfetto           counters of a trace
weight_tracking    the files of a router weight tracker
weight_layers      router weights under the names of those files
detailed_logs      the files of a MoE monitoring callback
expert_usage       the file of an expert-usage tracker
gradient_analysis  the files of an analysis of gradient norms
files              all in place at the end, or none
```

The page is `docs/export.md`.
"""

from moetrace.export.exported import FORMATS, Exported, export_run

__all__ = ["FORMATS", "Exported", "export_run"]

"""The same fan-out on many processes and machines, which Dask schedules."""

from swarmkv_lab.cluster.fan_out import ClusterRun as ClusterRun
from swarmkv_lab.cluster.fan_out import fan_out as fan_out

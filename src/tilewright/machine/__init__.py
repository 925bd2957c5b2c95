"""The machine as data: `Target`, the hardware descriptor, the analytic cost."""

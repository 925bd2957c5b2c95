"""Build, load and call native code: object cache, loader, thread pool, call contexts, calibration, measurement."""

"""Build, load, call, calibrate and measure native code."""

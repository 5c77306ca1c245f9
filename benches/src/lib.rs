//! What the benchmark programs share: samples, medians, JSON and SVG.
#![forbid(unsafe_code)]

//! End to end, hostile neighbours, architecture, and the demonstration.

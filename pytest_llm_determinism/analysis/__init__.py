"""From runs to groups, statistics, divergence and findings: pure functions, values in and values out."""

"""Pictures to numbers with intervals: scores, what they owe to each image, how sure a difference is."""

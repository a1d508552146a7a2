"""The runtime under the name that deployment scripts import: see `ovsdino.edge.EdgeSegmenter`."""

from ovsdino.edge import EdgeSegmenter as EdgeSegmenter

"""Numbers stay as they are written everywhere else: pages, charts and downloads read them."""

DECIMAL_SEPARATOR = "."
THOUSAND_SEPARATOR = ","
NUMBER_GROUPING = 3

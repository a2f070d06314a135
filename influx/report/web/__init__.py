"""The page of `influx report`: tables, charts and galleries in one HTML file. Its parts take tables and compute nothing."""

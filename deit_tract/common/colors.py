"""Colours for lines and boxes."""

# Okabe and Ito's in their order, which colour-blind people can distinguish too; without black
OKABE_ITO = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7")

"""Colours for lines and boxes."""

# Okabe and Ito's, which colour-blind people can distinguish too; black is left out
OKABE_ITO = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#f0e442")

"""From features back to pictures: cascade, Wiener and blind inverses, their sessions and certificates."""

from pullback.inversion.correctors import Corrector, Correctors
from pullback.inversion.inverter import Inverter
from pullback.inversion.prior import Prior, fit_prior
from pullback.inversion.session import Inversion
from pullback.inversion.shipped import shipped_correctors

__all__ = ["Corrector", "Correctors", "Inversion", "Inverter", "Prior", "fit_prior", "shipped_correctors"]

//! IPv4 subnets: what overlaps, and what is free.

use std::net::Ipv4Addr;

/// An IPv4 subnet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subnet {
    address: u32,
    bits: u8,
}

impl Subnet {
    /// The subnet of this address and mask, each as a number.
    #[must_use]
    pub const fn new(address: u32, mask_bits: u32) -> Self {
        let bits = mask_bits.leading_ones() as u8;
        Self { address: address & mask(bits), bits }
    }

    /// Whether it is every address, as a default route.
    #[must_use]
    pub const fn is_everything(self) -> bool {
        self.bits == 0
    }

    /// Reads `172.18.0.0/16`; `None` if it is no IPv4 subnet.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (address, bits) = text.split_once('/')?;
        let (address, bits) = (address.parse::<Ipv4Addr>().ok()?, bits.parse::<u8>().ok()?);
        (bits <= 32).then(|| Self { address: u32::from(address) & mask(bits), bits })
    }

    /// Whether they share an address.
    #[must_use]
    pub const fn overlaps(self, other: Self) -> bool {
        let shorter = mask(if self.bits < other.bits { self.bits } else { other.bits });
        self.address & shorter == other.address & shorter
    }
}

impl std::fmt::Display for Subnet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", Ipv4Addr::from(self.address), self.bits)
    }
}

const fn mask(bits: u8) -> u32 {
    if bits == 0 { 0 } else { u32::MAX << (32 - bits) }
}

/// The first of the private ranges that Docker itself uses (172.18 … 172.31, then 10.0 …) that overlaps
/// with none of these.
#[must_use]
pub fn free_subnet(taken: &[Subnet]) -> Option<Subnet> {
    let docker = (18..32).map(|second| Ipv4Addr::new(172, second, 0, 0));
    let private = (0..=255).map(|second| Ipv4Addr::new(10, second, 0, 0));
    docker
        .chain(private)
        .map(|address| Subnet { address: u32::from(address), bits: 16 })
        .find(|subnet| taken.iter().all(|other| !other.overlaps(*subnet)))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn subnets_overlap_when_one_holds_the_other() {
        let subnet = |text: &str| Subnet::parse(text).unwrap();
        assert!(subnet("172.18.0.0/16").overlaps(subnet("172.18.5.0/24")));
        assert!(subnet("172.18.5.0/24").overlaps(subnet("172.16.0.0/12")));
        assert!(subnet("0.0.0.0/0").overlaps(subnet("10.0.0.0/8")));
        assert!(!subnet("172.18.0.0/16").overlaps(subnet("172.19.0.0/16")));
        for bad in ["172.18.0.0", "172.18.0.0/33", "a/8", "fd00::/8"] {
            assert_eq!(Subnet::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn the_free_subnet_overlaps_with_none_in_use() {
        let taken: Vec<_> = ["172.17.0.0/16", "172.18.0.0/15", "172.20.7.0/24"]
            .map(|text| Subnet::parse(text).unwrap())
            .into();
        assert_eq!(free_subnet(&taken).unwrap().to_string(), "172.21.0.0/16");
        assert_eq!(free_subnet(&[Subnet::parse("0.0.0.0/0").unwrap()]), None);
    }
}

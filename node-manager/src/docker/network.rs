//! The networks of a cluster.

use super::{
    ACT_SECONDS, ASK_SECONDS, DockerEngine, fault,
    subnet::{Subnet, free_subnet},
};
use crate::engine::{EngineError, LABEL_CLUSTER, Outcome};
use bollard::{
    models::{Ipam, IpamConfig, NetworkConnectRequest, NetworkCreateRequest, NetworkInspect},
    query_parameters::ListNetworksOptionsBuilder,
};
use fault::bounded;
use std::collections::HashMap;

/// What the network shall be, where the default will not do.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkWish {
    /// Subnet in CIDR form; Docker's choice if absent.
    pub subnet: Option<String>,
    /// Without a way out.
    pub internal: bool,
}

/// What became of a network that was to be removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NetworkEnd {
    /// Removed.
    Removed,
    /// There was none.
    Absent,
    /// It was not made by us, so it stays.
    NotOurs,
    /// These containers are still on it, so it stays.
    InUse(Vec<String>),
}

/// The name of a cluster's network.
#[must_use]
pub fn network_name(cluster: &str) -> String {
    match cluster {
        "default" => "balancer-net".to_owned(),
        other => format!("balancer-net-{other}"),
    }
}

/// The name of the network by which the master of an isolated cluster is published: a port cannot be
/// published from a network without a way out.
#[must_use]
pub fn way_out_name(cluster: &str) -> String {
    format!("evenkeel-{cluster}-out")
}

/// Option of the bridge driver: the host has no address on the bridge, so that nothing of the host is reached
/// by it.
const WITHOUT_HOST: &str = "com.docker.network.bridge.inhibit_ipv4";

/// A network that is there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Network {
    /// Its name.
    pub name: String,
    /// Whether it is without a way out.
    pub internal: bool,
}

impl DockerEngine {
    /// The cluster's network, made if there is none. One of the same name that was made by hand is used as it
    /// is, with a way out or without.
    ///
    /// # Errors
    /// If the wanted subnet overlaps with another network (the error names that one and a free subnet), or
    /// the daemon does not answer.
    pub async fn ensure_network(&self, cluster: &str, wish: &NetworkWish) -> Outcome<Network> {
        self.ensure_network_of(&network_name(cluster), cluster, wish).await
    }

    /// The network [`way_out_name`], made if there is none.
    ///
    /// # Errors
    /// If the daemon does not answer, or refuses.
    pub async fn ensure_way_out(&self, cluster: &str) -> Outcome<Network> {
        self.ensure_network_of(&way_out_name(cluster), cluster, &NetworkWish::default()).await
    }

    async fn ensure_network_of(&self, name: &str, cluster: &str, wish: &NetworkWish) -> Outcome<Network> {
        if let Some(there) = self.network(name).await? {
            return Ok(Network { name: name.to_owned(), internal: there.internal.unwrap_or(false) });
        }
        let subnet = |subnet: &String| Ipam {
            config: Some(vec![IpamConfig { subnet: Some(subnet.clone()), ..IpamConfig::default() }]),
            ..Ipam::default()
        };
        let request = NetworkCreateRequest {
            name: name.to_owned(),
            driver: Some("bridge".to_owned()),
            internal: Some(wish.internal),
            ipam: wish.subnet.as_ref().map(subnet),
            options: wish.internal.then(|| HashMap::from([(WITHOUT_HOST.to_owned(), "true".to_owned())])),
            labels: Some(HashMap::from([(LABEL_CLUSTER.to_owned(), cluster.to_owned())])),
            ..NetworkCreateRequest::default()
        };
        let what = format!("creating the network {name}");
        match bounded(&what, ACT_SECONDS, self.docker.create_network(request)).await {
            // Taken: somebody else made it in between.
            Ok(_) | Err(EngineError::NameTaken(_)) => {
                Ok(Network { name: name.to_owned(), internal: wish.internal })
            }
            Err(EngineError::Failed { reason, .. }) if reason.contains("overlap") => {
                Err(self.overlap(wish.subnet.as_deref().unwrap_or_default()).await?)
            }
            Err(error) => Err(error),
        }
    }

    /// Puts a container on one more network.
    ///
    /// # Errors
    /// If the daemon does not answer, or refuses.
    pub(super) async fn connect_to_network(&self, container: &str, network: &str) -> Outcome<()> {
        let request = NetworkConnectRequest { container: container.to_owned(), endpoint_config: None };
        let what = format!("connecting a container to the network {network}");
        bounded(&what, ACT_SECONDS, self.docker.connect_network(network, request)).await
    }

    /// Removes the cluster's networks, each if we made it and nobody uses it; what became of each.
    ///
    /// # Errors
    /// If the daemon does not answer, or refuses.
    pub async fn remove_networks(&self, cluster: &str) -> Outcome<Vec<(String, NetworkEnd)>> {
        let mut ends = Vec::new();
        for name in [network_name(cluster), way_out_name(cluster)] {
            let end = self.remove_network(&name, cluster).await?;
            ends.push((name, end));
        }
        Ok(ends)
    }

    async fn remove_network(&self, name: &str, cluster: &str) -> Outcome<NetworkEnd> {
        let Some(network) = self.network(name).await? else { return Ok(NetworkEnd::Absent) };
        if !is_ours(&network, cluster) {
            return Ok(NetworkEnd::NotOurs);
        }
        let users = network.containers.unwrap_or_default().into_values().filter_map(|endpoint| endpoint.name);
        let users: Vec<String> = users.collect();
        if !users.is_empty() {
            return Ok(NetworkEnd::InUse(users));
        }
        let what = format!("removing the network {name}");
        bounded(&what, ACT_SECONDS, self.docker.remove_network(name)).await?;
        Ok(NetworkEnd::Removed)
    }

    /// Names of the cluster's networks that we made.
    ///
    /// # Errors
    /// If the daemon does not answer.
    pub async fn networks(&self, cluster: &str) -> Outcome<Vec<String>> {
        let mut ours = Vec::new();
        for name in [network_name(cluster), way_out_name(cluster)] {
            if self.network(&name).await?.is_some_and(|network| is_ours(&network, cluster)) {
                ours.push(name);
            }
        }
        Ok(ours)
    }

    async fn network(&self, name: &str) -> Outcome<Option<NetworkInspect>> {
        let asked = self.docker.inspect_network(name, None);
        let what = format!("inspecting the network {name}");
        fault::fine_if(bounded(&what, ASK_SECONDS, asked).await.map(Some), fault::is_absent, None)
    }

    async fn overlap(&self, wanted: &str) -> Outcome<EngineError> {
        let used: Vec<(String, Subnet)> = self
            .all_networks()
            .await?
            .into_iter()
            .flat_map(|KnownNetwork { name, subnets, .. }| {
                subnets.into_iter().map(move |it| (name.clone(), it))
            })
            .collect();
        let other = Subnet::parse(wanted)
            .and_then(|wanted| used.iter().find(|(_, subnet)| subnet.overlaps(wanted)))
            .map_or_else(
                || "another network".to_owned(),
                |(name, subnet)| format!("the network {name} ({subnet})"),
            );
        let taken: Vec<Subnet> = used.iter().map(|(_, subnet)| *subnet).collect();
        let free = free_subnet(&taken).map_or_else(String::new, |free| format!("; {free} is free"));
        Ok(EngineError::Refused(format!("the subnet {wanted} overlaps with {other}{free}")))
    }

    /// All networks of the daemon.
    pub(super) async fn all_networks(&self) -> Outcome<Vec<KnownNetwork>> {
        let options = ListNetworksOptionsBuilder::new().build();
        let networks =
            bounded("listing networks", ASK_SECONDS, self.docker.list_networks(Some(options))).await?;
        let read = |network: bollard::models::Network| {
            let options = network.options.unwrap_or_default();
            let configs = network.ipam.and_then(|ipam| ipam.config).unwrap_or_default();
            KnownNetwork {
                name: network.name.unwrap_or_default(),
                // As the daemon names the bridge of a network without a name for it.
                interface: options.get("com.docker.network.bridge.name").cloned().unwrap_or_else(|| {
                    format!("br-{}", network.id.unwrap_or_default().chars().take(12).collect::<String>())
                }),
                subnets: configs
                    .iter()
                    .filter_map(|config| Subnet::parse(config.subnet.as_deref()?))
                    .collect(),
            }
        };
        Ok(networks.into_iter().map(read).collect())
    }
}

fn is_ours(network: &NetworkInspect, cluster: &str) -> bool {
    network.labels.as_ref().and_then(|labels| labels.get(LABEL_CLUSTER)).is_some_and(|label| label == cluster)
}

/// A network of the daemon.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KnownNetwork {
    /// Its name.
    pub name: String,
    /// Its bridge on the host.
    pub interface: String,
    /// Its IPv4 subnets.
    pub subnets: Vec<Subnet>,
}

//! One lookup of a name: which records are asked for, what answers and silence mean, and how long the result holds.
//!
//! A resolver is made for every lookup, so that changes of `/etc/resolv.conf` count and it caches nothing. A
//! lookup as a whole is bounded in time and in the number of its questions.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use futures_util::StreamExt as _;
use futures_util::stream;
use hickory_resolver::TokioResolver;
use hickory_resolver::config::{ConnectionConfig, NameServerConfig, ResolverConfig, ResolverOpts};
use hickory_resolver::net::runtime::TokioRuntimeProvider;
use hickory_resolver::net::{DnsError, NetError};
use hickory_resolver::proto::op::ResponseCode;
use hickory_resolver::proto::rr::{RData, RecordType};

use super::records::{Found, Service, is_name, of_addresses, of_services};
use crate::config::{BackendSpec, Discovery, Resolve};

/// Targets of an SRV answer that are looked up at a time.
const AT_A_TIME: usize = 16;

/// What a name stands for now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Never empty.
    pub found: Vec<Found>,
    /// The time to live of the records.
    pub ttl: Duration,
}

/// Why a lookup has no result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, thiserror::Error)]
pub enum LookupFault {
    /// There is no such name.
    #[error("there is no such name (NXDOMAIN)")]
    Nxdomain,
    /// The name has no records of the kind, or none of them is of use.
    #[error("the name has no records")]
    Empty,
    /// A server said that it failed.
    #[error("the server failed (SERVFAIL)")]
    Servfail,
    /// No server answered.
    #[error("no answer in time")]
    Timeout,
    /// A server refused, answered nonsense, or could not be reached; or there is no server to ask.
    #[error("the lookup failed")]
    Failed,
}

impl LookupFault {
    /// The metric label.
    pub const fn label(self) -> &'static str {
        match self {
            Self::Nxdomain => "nxdomain",
            Self::Empty => "empty",
            Self::Servfail => "servfail",
            Self::Timeout => "timeout",
            Self::Failed => "failed",
        }
    }

    /// Whether it is an answer: there is nobody of that name.
    const fn is_nobody(self) -> bool {
        matches!(self, Self::Nxdomain | Self::Empty)
    }
}

/// Looks `spec` up. `known` is what was found before: it stands in for a part of the answer that does not come.
///
/// # Errors
/// Why there is no result.
pub async fn look_up(
    spec: &BackendSpec,
    discovery: &Discovery,
    known: &[Found],
) -> Result<Answer, LookupFault> {
    let resolver = resolver(discovery).map_err(|error| fault(&error))?;
    let asking = async {
        match spec.resolve {
            Resolve::Srv => services(&resolver, &spec.address, discovery.backends, known).await,
            Resolve::All | Resolve::Dial => {
                let (host, port) = spec.address.rsplit_once(':').ok_or(LookupFault::Failed)?;
                let port = port.parse().map_err(|_| LookupFault::Failed)?;
                let known = known.iter().map(|found| found.address.ip());
                let (addresses, ttl) = addresses(&resolver, host, known.collect()).await?;
                Ok(Answer { found: of_addresses(addresses, port), ttl })
            }
        }
    };
    let answer =
        tokio::time::timeout(discovery.timeout, asking).await.unwrap_or(Err(LookupFault::Timeout))?;
    if answer.found.is_empty() { Err(LookupFault::Empty) } else { Ok(answer) }
}

fn resolver(discovery: &Discovery) -> Result<TokioResolver, NetError> {
    let mut builder = if discovery.nameservers.is_empty() {
        TokioResolver::builder_tokio()?
    } else {
        let servers = discovery.nameservers.iter().map(nameserver).collect();
        let config = ResolverConfig::from_name_servers(servers);
        let mut builder = TokioResolver::builder_with_config(config, TokioRuntimeProvider::default());
        *builder.options_mut() = ResolverOpts::default();
        builder
    };
    let options = builder.options_mut();
    // Two tries within the timeout.
    options.timeout = discovery.timeout.checked_div(2).unwrap_or(discovery.timeout);
    options.attempts = 1;
    options.cache_size = 0;
    builder.build()
}

fn nameserver(address: &SocketAddr) -> NameServerConfig {
    let connections = [ConnectionConfig::udp(), ConnectionConfig::tcp()].map(|mut connection| {
        connection.port = address.port();
        connection
    });
    NameServerConfig::new(address.ip(), true, connections.into())
}

/// The addresses of a host. If one family fails while the other answers, what was known of the former holds on.
async fn addresses(
    resolver: &TokioResolver,
    host: &str,
    known: Vec<IpAddr>,
) -> Result<(Vec<IpAddr>, Duration), LookupFault> {
    let (v4, v6) = futures_util::join!(
        records(resolver, host, RecordType::A),
        records(resolver, host, RecordType::AAAA)
    );
    let failed = match (&v4, &v6) {
        (Err(a), Err(b)) => Some(if a.is_nobody() && !b.is_nobody() { *b } else { *a }),
        _ => None,
    };
    if let Some(fault) = failed {
        return Err(fault);
    }
    let mut all = Vec::new();
    let mut ttl = Duration::MAX;
    for (family, is_v4) in [(v4, true), (v6, false)] {
        match family {
            Ok((records, holds)) => {
                all.extend(records.into_iter().filter_map(|data| match data {
                    RData::A(a) => Some(IpAddr::V4(a.0)),
                    RData::AAAA(aaaa) => Some(IpAddr::V6(aaaa.0)),
                    _ => None,
                }));
                ttl = ttl.min(holds);
            }
            Err(fault) if fault.is_nobody() => {}
            Err(_) => {
                all.extend(known.iter().filter(|address| address.is_ipv4() == is_v4));
                ttl = Duration::ZERO;
            }
        }
    }
    Ok((all, ttl))
}

/// The servers of a service. A target whose address does not come keeps the one it had.
async fn services(
    resolver: &TokioResolver,
    name: &str,
    targets_max: usize,
    known: &[Found],
) -> Result<Answer, LookupFault> {
    let (records, mut ttl) = records(resolver, name, RecordType::SRV).await?;
    let mut services: Vec<Service> = records.into_iter().filter_map(service).collect();
    // Sorted, so that all balancers take the same ones if there are too many.
    services.sort_unstable_by(|a, b| {
        (a.priority, &a.target, a.port, a.weight).cmp(&(b.priority, &b.target, b.port, b.weight))
    });
    let best = services.first().map(|service| service.priority);
    services.retain(|service| Some(service.priority) == best);
    services.truncate(targets_max);
    let asked = stream::iter(services).map(|service| located(resolver, service, known));
    let located: Vec<(Service, Result<Duration, LookupFault>)> =
        asked.buffer_unordered(AT_A_TIME).collect().await;
    let mut fault = None;
    let mut services = Vec::new();
    for (service, holds) in located {
        match holds {
            Ok(holds) => ttl = ttl.min(holds),
            Err(missed) => {
                fault.get_or_insert(missed);
                ttl = Duration::ZERO;
            }
        }
        services.push(service);
    }
    let found = of_services(services, known);
    match fault {
        Some(fault) if found.is_empty() => Err(fault),
        _ => Ok(Answer { found, ttl }),
    }
}

async fn located(
    resolver: &TokioResolver,
    service: Service,
    known: &[Found],
) -> (Service, Result<Duration, LookupFault>) {
    let is_it = |found: &&Found| {
        let own = format!("{}:{}", service.target, service.port);
        found.address.port() == service.port && (found.name == service.target || found.name == own)
    };
    let had: Vec<IpAddr> = known.iter().filter(is_it).map(|found| found.address.ip()).collect();
    match addresses(resolver, &format!("{}.", service.target), had.clone()).await {
        Ok((addresses, ttl)) => (Service { addresses, ..service }, Ok(ttl)),
        Err(fault) => (Service { addresses: had, ..service }, Err(fault)),
    }
}

fn service(data: RData) -> Option<Service> {
    let RData::SRV(srv) = data else { return None };
    let target = srv.target.to_ascii().to_ascii_lowercase();
    let target = target.strip_suffix('.').unwrap_or(&target).to_owned();
    let (priority, weight, port) = (srv.priority, srv.weight, srv.port);
    is_name(&target).then_some(Service { priority, weight, port, target, addresses: Vec::new() })
}

/// The records of one kind, at least one, and how long they hold.
async fn records(
    resolver: &TokioResolver,
    name: &str,
    kind: RecordType,
) -> Result<(Vec<RData>, Duration), LookupFault> {
    let lookup = resolver.lookup(name, kind).await.map_err(|error| fault(&error))?;
    let ttl = lookup.valid_until().saturating_duration_since(Instant::now());
    let of_kind = lookup.answers().iter().filter(|record| record.record_type() == kind);
    let records: Vec<RData> = of_kind.map(|record| record.data.clone()).collect();
    if records.is_empty() { Err(LookupFault::Empty) } else { Ok((records, ttl)) }
}

fn fault(error: &NetError) -> LookupFault {
    tracing::debug!(%error, "a lookup failed");
    let code = match error {
        NetError::Timeout => return LookupFault::Timeout,
        NetError::Dns(DnsError::NoRecordsFound(none)) => none.response_code,
        NetError::Dns(DnsError::ResponseCode(code)) => *code,
        _ => return LookupFault::Failed,
    };
    match code {
        ResponseCode::NoError => LookupFault::Empty,
        ResponseCode::NXDomain => LookupFault::Nxdomain,
        ResponseCode::ServFail => LookupFault::Servfail,
        _ => LookupFault::Failed,
    }
}

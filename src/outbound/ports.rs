//! Ports where another protocol than HTTP is spoken.
//!
//! A request to one of them is an attempt to make Hookbridge talk to something that takes a POST for commands, or
//! to a server of the inside. The first table is the list of the Fetch standard ("port blocking",
//! <https://fetch.spec.whatwg.org/#port-blocking>), the second what stands beside services nowadays. Ports that
//! HTTP applications use as well (3000, 5000, 8000, 8080, 8443, 9000) are in neither.

/// The Fetch standard's list.
const FETCH: [u16; 83] = [
    0, 1, 7, 9, 11, 13, 15, 17, 19, 20, 21, 22, 23, 25, 37, 42, 43, 53, 69, 77, 79, 87, 95, 101, 102, 103, 104, 109,
    110, 111, 113, 115, 117, 119, 123, 135, 137, 139, 143, 161, 179, 389, 427, 465, 512, 513, 514, 515, 526, 530, 531,
    532, 540, 548, 554, 556, 563, 587, 601, 636, 989, 990, 993, 995, 1719, 1720, 1723, 2049, 3659, 4045, 4190, 5060,
    5061, 6000, 6566, 6665, 6666, 6667, 6668, 6669, 6679, 6697, 10080,
];

/// Servers of the inside.
const SERVERS: [(u16, &str); 43] = [
    (88, "Kerberos"),
    (138, "NetBIOS"),
    (445, "SMB"),
    (464, "Kerberos"),
    (543, "Kerberos"),
    (544, "Kerberos"),
    (623, "IPMI"),
    (873, "rsync"),
    (1433, "SQL Server"),
    (1434, "SQL Server"),
    (1521, "Oracle"),
    (1883, "MQTT"),
    (2181, "ZooKeeper"),
    (2375, "Docker"),
    (2376, "Docker"),
    (2377, "Docker Swarm"),
    (2379, "etcd"),
    (2380, "etcd"),
    (3306, "MySQL"),
    (3389, "RDP"),
    (4222, "NATS"),
    (5432, "PostgreSQL"),
    (5671, "AMQP"),
    (5672, "AMQP"),
    (5900, "VNC"),
    (5984, "CouchDB"),
    (5985, "WinRM"),
    (5986, "WinRM"),
    (6222, "NATS"),
    (6379, "Redis"),
    (6380, "Redis"),
    (6443, "Kubernetes"),
    (7422, "NATS"),
    (8222, "NATS"),
    (8500, "Consul"),
    (9042, "Cassandra"),
    (9092, "Kafka"),
    (9200, "Elasticsearch"),
    (9300, "Elasticsearch"),
    (10250, "kubelet"),
    (10255, "kubelet"),
    (11211, "memcached"),
    (27017, "MongoDB"),
];

/// What is spoken at a port, where it is known for something else than HTTP.
pub(super) fn other_protocol(port: u16) -> Option<&'static str> {
    let server = SERVERS.iter().find(|(known, _)| *known == port).map(|(_, name)| *name);
    server.or_else(|| FETCH.contains(&port).then_some("another protocol than HTTP"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_ports_are_refused_and_those_of_http_are_not() {
        for port in [0, 22, 25, 53, 2375, 4222, 6222, 8222, 3306, 5432, 6379, 9200, 10250, 11211, 27017, 6667, 10080] {
            assert!(other_protocol(port).is_some(), "{port}");
        }
        for port in [80, 443, 591, 3000, 5000, 8000, 8008, 8080, 8081, 8443, 8888, 9000, 9443, 18080, 65535] {
            assert_eq!(other_protocol(port), None, "{port}");
        }
    }

    #[test]
    fn no_port_stands_in_both_tables_and_both_are_in_order() {
        assert!(FETCH.is_sorted() && SERVERS.is_sorted_by_key(|(port, _)| *port));
        assert!(SERVERS.iter().all(|(port, _)| !FETCH.contains(port)));
    }
}

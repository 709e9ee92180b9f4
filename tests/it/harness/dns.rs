//! A name server of the test's own, on loopback.

use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::rdata::CNAME;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use tokio::net::UdpSocket;

/// Answers over UDP what the test says. Other names do not exist.
pub(crate) struct Dns {
    address: SocketAddr,
    zone: Arc<Mutex<Zone>>,
    server: tokio::task::JoinHandle<()>,
}

#[derive(Default)]
struct Zone {
    /// For each name, what is said the first time, the second time and so on; the last answer stays.
    names: HashMap<String, Vec<String>>,
    asked: BTreeMap<(String, RecordType), usize>,
}

impl Dns {
    pub(crate) async fn start() -> Self {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let (address, zone) = (socket.local_addr().unwrap(), Arc::<Mutex<Zone>>::default());
        let server = tokio::spawn(serve(socket, zone.clone()));
        Self { address, zone, server }
    }

    pub(crate) fn address(&self) -> SocketAddr {
        self.address
    }

    /// What a name resolves to from now on, question by question: addresses and names of aliases, with spaces
    /// between them. The last answer stays.
    pub(crate) fn say(&self, name: &str, answers: &[&str]) {
        let mut zone = self.zone.lock().unwrap();
        zone.asked.retain(|(asked, _), _| asked != name);
        zone.names.insert(name.to_owned(), answers.iter().map(|answer| (*answer).to_owned()).collect());
    }

    /// How often a name's IPv4 addresses were asked for since it was last said what they are.
    pub(crate) fn asked(&self, name: &str) -> usize {
        let zone = self.zone.lock().unwrap();
        zone.asked.get(&(name.to_owned(), RecordType::A)).copied().unwrap_or_default()
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn serve(socket: UdpSocket, zone: Arc<Mutex<Zone>>) {
    let mut buffer = [0; 4096];
    while let Ok((length, from)) = socket.recv_from(&mut buffer).await {
        let Ok(question) = Message::from_vec(&buffer[..length]) else { continue };
        let answer = zone.lock().unwrap().answer(question);
        drop(socket.send_to(&answer.to_vec().unwrap(), from).await);
    }
}

impl Zone {
    fn answer(&mut self, question: Message) -> Message {
        let query = question.queries[0].clone();
        let mut answer = question.into_response();
        let (mut name, kind) = (query.name().clone(), query.query_type());
        // An alias leads to the next name, as often as a real server would follow it.
        for _ in 0..8 {
            let Some(text) = self.next(&name, kind) else {
                answer.metadata.response_code = ResponseCode::NXDomain;
                return answer;
            };
            let mut alias = None;
            for word in text.split_whitespace() {
                let data = match word.parse::<IpAddr>() {
                    Ok(IpAddr::V4(address)) => (kind == RecordType::A).then(|| RData::A(address.into())),
                    Ok(IpAddr::V6(address)) => (kind == RecordType::AAAA).then(|| RData::AAAA(address.into())),
                    Err(_) => {
                        let target: Name = format!("{word}.").parse().unwrap();
                        alias = Some(target.clone());
                        Some(RData::CNAME(CNAME(target)))
                    }
                };
                answer.add_answers(data.map(|data| Record::from_rdata(name.clone(), 60, data)));
            }
            match alias {
                Some(target) => name = target,
                None => return answer,
            }
        }
        answer
    }

    fn next(&mut self, name: &Name, kind: RecordType) -> Option<String> {
        let key = name.to_ascii().to_lowercase().trim_end_matches('.').to_owned();
        let answers = self.names.get(&key)?;
        let asked = self.asked.entry((key, kind)).or_default();
        let answer = answers.get(*asked).or(answers.last()).cloned();
        *asked += 1;
        answer
    }
}

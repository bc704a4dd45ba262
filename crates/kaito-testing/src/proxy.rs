//! A proxy that breaks connections at chosen places.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
};

/// How long a stalled connection is held, if the client does not give it up: longer than any test waits.
const STALL: Duration = Duration::from_secs(120);

/// What becomes of a connection where it is cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Both ends get a reset.
    Reset,
    /// The client gets this status in the middle of its request, the server nothing more.
    Status(u16),
    /// Nothing moves any more.
    Stall,
    /// The server gets the whole request, the client no answer.
    LostAnswer,
}

/// Of each kind.
pub const FAULTS: [Fault; 5] = [Fault::Reset, Fault::Status(500), Fault::Status(429), Fault::Stall, Fault::LostAnswer];

/// Where to break: after so many bytes on their way to the server, over all connections.
#[derive(Debug)]
struct Plan {
    passed: u64,
    cuts: Vec<(u64, Fault)>,
}

impl Plan {
    /// How many of `length` bytes pass, and what happens then.
    fn pass(&mut self, length: usize) -> (usize, Option<Fault>) {
        let Some((at, fault)) = self.cuts.first().copied() else { return (length, None) };
        let left = at.saturating_sub(self.passed);
        if left >= length as u64 {
            self.passed += length as u64;
            return (length, None);
        }
        self.passed = at;
        self.cuts.remove(0);
        (left as usize, Some(fault))
    }
}

/// A running proxy.
#[derive(Debug)]
pub struct Proxy {
    /// Where it listens.
    pub address: SocketAddr,
    plan: Arc<Mutex<Plan>>,
}

impl Proxy {
    /// Breaks `count` times within the first `span` bytes.
    pub async fn random(server: SocketAddr, seed: u64, count: usize, span: u64) -> Self {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let cut = |_| (random.random_range(0..span), FAULTS[random.random_range(0..FAULTS.len())]);
        Self::start(server, (0..count).map(cut).collect()).await
    }

    /// Breaks where `cuts` say: after so many bytes, over all connections.
    pub async fn start(server: SocketAddr, mut cuts: Vec<(u64, Fault)>) -> Self {
        cuts.sort_by_key(|(at, _)| *at);
        let plan = Arc::new(Mutex::new(Plan { passed: 0, cuts }));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shared = plan.clone();
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let plan = shared.clone();
                tokio::spawn(async move {
                    if let Ok(server) = TcpStream::connect(server).await {
                        // The end of a connection is what this is about.
                        let _ = forward(client, server, &plan).await;
                    }
                });
            }
        });
        Self { address, plan }
    }

    /// Cuts that were not come to.
    pub fn left(&self) -> usize {
        self.plan.lock().unwrap().cuts.len()
    }
}

async fn forward(mut client: TcpStream, mut server: TcpStream, plan: &Mutex<Plan>) -> std::io::Result<()> {
    let (mut up, mut down) = (vec![0; 64 << 10], vec![0; 64 << 10]);
    let mut answer_is_lost = false;
    loop {
        tokio::select! {
            read = client.read(&mut up) => {
                let count = read?;
                if count == 0 {
                    return server.shutdown().await;
                }
                let (passing, fault) = plan.lock().unwrap().pass(count);
                match fault {
                    None => server.write_all(&up[..passing]).await?,
                    Some(Fault::LostAnswer) => {
                        answer_is_lost = true;
                        server.write_all(&up[..count]).await?;
                    }
                    Some(fault) => {
                        server.write_all(&up[..passing]).await?;
                        return break_off(client, server, fault).await;
                    }
                }
            }
            read = server.read(&mut down) => {
                let count = read?;
                if answer_is_lost {
                    return reset(client);
                }
                if count == 0 {
                    return client.shutdown().await;
                }
                client.write_all(&down[..count]).await?;
            }
        }
    }
}

async fn break_off(mut client: TcpStream, server: TcpStream, fault: Fault) -> std::io::Result<()> {
    reset(server)?;
    match fault {
        Fault::Reset | Fault::LostAnswer => reset(client),
        Fault::Status(status) => {
            let wait = if status == 429 { "Retry-After: 1\r\n" } else { "" };
            let answer = format!("HTTP/1.1 {status} X\r\n{wait}Content-Length: 0\r\nConnection: close\r\n\r\n");
            client.write_all(answer.as_bytes()).await?;
            // A connection that is closed with bytes unread is reset, and the answer may be lost.
            tokio::io::copy(&mut client, &mut tokio::io::sink()).await.map(|_| ())
        }
        Fault::Stall => {
            tokio::time::sleep(STALL).await;
            Ok(())
        }
    }
}

fn reset(stream: TcpStream) -> std::io::Result<()> {
    stream.set_zero_linger()
}

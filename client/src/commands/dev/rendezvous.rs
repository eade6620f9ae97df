//! One rank of the demo's gang: all ranks meet at rank 0, add up their numbers, and hear the sum.
//!
//! In: RANK, WORLD_SIZE, MASTER_ADDR and MASTER_PORT, as any training job gets them. Out: the sum of
//! all ranks' numbers, the same on every rank. It stands for a collective call, over plain TCP.

use std::time::Duration;

use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use crate::failure::{Failure, Outcome};
use crate::output::Screen;

/// How long a rank waits for the others.
const MEET: Duration = Duration::from_secs(20);

/// A rank's place in its gang.
#[derive(Debug, Clone)]
pub struct Rank {
    pub rank: u64,
    pub world: u64,
    pub master: String,
}

pub async fn run(screen: &Screen) -> Outcome<u8> {
    let text = |name: &str| {
        std::env::var(name).map_err(|_| {
            Failure::usage(format!("{name} is not set"), "this verb runs as a task of a job")
        })
    };
    let number = |name: &str| -> Outcome<u64> {
        let value = text(name)?;
        value.parse().map_err(|_| Failure::usage(format!("{name} is {value:?}"), ""))
    };
    let rank = Rank {
        rank: number("RANK")?,
        world: number("WORLD_SIZE")?,
        master: format!("{}:{}", text("MASTER_ADDR")?, number("MASTER_PORT")?),
    };
    let sum = meet(&rank, None).await?;
    let host = text("SLURMD_NODENAME").unwrap_or_default();
    screen.line(format!("rank {} of {} on {host}: the sum is {sum}", rank.rank, rank.world))?;
    Ok(0)
}

/// Every rank brings rank + 1 and leaves with the sum of all.
pub async fn meet(rank: &Rank, listener: Option<TcpListener>) -> Outcome<u64> {
    let work = async {
        if rank.rank == 0 {
            let listener = match listener {
                Some(listener) => listener,
                None => TcpListener::bind(&rank.master).await?,
            };
            gather(rank, &listener).await
        } else {
            call_in(rank).await
        }
    };
    let broken = |why: String| {
        Failure::no("rendezvous", format!("rank {} did not meet the others: {why}", rank.rank), "")
    };
    match tokio::time::timeout(MEET, work).await {
        Ok(Ok(sum)) => Ok(sum),
        Ok(Err(error)) => Err(broken(error.to_string())),
        Err(_) => Err(broken(format!("not all came within {} s", MEET.as_secs()))),
    }
}

async fn gather(rank: &Rank, listener: &TcpListener) -> std::io::Result<u64> {
    let mut sum = rank.rank + 1;
    let mut callers = Vec::new();
    while (callers.len() as u64) + 1 < rank.world {
        let (stream, _) = listener.accept().await?;
        let mut stream = BufReader::new(stream);
        sum += read_number(&mut stream).await?;
        callers.push(stream);
    }
    for mut caller in callers {
        caller.write_all(format!("{sum}\n").as_bytes()).await?;
        caller.flush().await?;
    }
    Ok(sum)
}

async fn call_in(rank: &Rank) -> std::io::Result<u64> {
    // Rank 0 may not listen yet.
    let stream = loop {
        match TcpStream::connect(&rank.master).await {
            Ok(stream) => break stream,
            Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
        }
    };
    let mut stream = BufReader::new(stream);
    stream.write_all(format!("{}\n", rank.rank + 1).as_bytes()).await?;
    stream.flush().await?;
    read_number(&mut stream).await
}

async fn read_number(stream: &mut BufReader<TcpStream>) -> std::io::Result<u64> {
    let mut line = String::new();
    stream.read_line(&mut line).await?;
    line.trim().parse().map_err(|_| {
        std::io::Error::new(std::io::ErrorKind::InvalidData, format!("{line:?} is no number"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn all_ranks_leave_with_the_same_sum() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let master = listener.local_addr().unwrap().to_string();
        let mut listener = Some(listener);
        let ranks = (0..4).map(|rank| {
            let listener = if rank == 0 { listener.take() } else { None };
            let rank = Rank { rank, world: 4, master: master.clone() };
            tokio::spawn(async move { meet(&rank, listener).await })
        });
        for rank in ranks.collect::<Vec<_>>() {
            assert_eq!(rank.await.unwrap(), Ok(10));
        }
    }
}

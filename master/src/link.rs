//! The WebSocket of one work channel: carries messages between a node's socket and the brain, and decides
//! nothing itself.

use crate::{
    brain::{Brain, FromSocket, OpenLink, Teller, ToSocket},
    lead::Tenure,
};
use axum::extract::ws::{CloseFrame, Message, WebSocket};
use futures_util::{
    SinkExt as _, StreamExt as _,
    stream::{SplitSink, SplitStream},
};
use protocol::NodeId;
use session::close::CloseReason;
use std::time::Duration;
use tokio::{sync::mpsc, time::timeout};
use tokio_util::sync::CancellationToken;

/// How long what was sent before, and the close frame, may take once the channel is over.
const CLOSE: Duration = Duration::from_secs(1);

/// What was written is told to the brain in portions of at least this many bytes: it only counts whether a
/// node reads at all, far above that.
const TELL_BYTES: usize = 64 * 1024;

/// Serves a node's work channel until either side closes it, the first of `ends` is cancelled, or the second is
/// over: then nothing more is written but the close itself.
///
/// While the brain's mailbox is full nothing is read, so the node's TCP window closes; what the brain sends
/// is written all the same. The brain bounds what waits to be written and closes a channel that exceeds it.
pub(crate) async fn serve(brain: Brain, node: NodeId, socket: WebSocket, ends: (CancellationToken, Tenure)) {
    let Ok(OpenLink { teller, orders, over }) = brain.open_link(node).await else { return };
    let (sink, stream) = socket.split();
    let mut writing = std::pin::pin!(write(sink, orders, &teller, &ends));
    let by_node = tokio::select! {
        () = read(stream, &teller) => true,
        () = &mut writing => false,
        () = over.cancelled() => {
            // Only what was sent before is left to do; a node that does not read it is cut off.
            let _cut = timeout(CLOSE, writing).await;
            return;
        }
    };
    // A brain that has ended needs no word of it.
    let _ended = teller.tell(FromSocket::Closed { by_node }).await;
}

/// Reads until the node closes or its connection breaks. A connection that is merely cut off somewhere never
/// ends here; the link notices its silence.
async fn read(mut stream: SplitStream<WebSocket>, teller: &Teller) {
    while let Some(Ok(message)) = stream.next().await {
        let what = match message {
            Message::Binary(message) => FromSocket::Message(message),
            Message::Ping(_) | Message::Pong(_) => FromSocket::Pong,
            // The protocol has no text.
            Message::Text(_) | Message::Close(_) => return,
        };
        if teller.tell(what).await.is_err() {
            return;
        }
    }
}

/// Writes until the brain closes the channel, the connection breaks or the program ends.
async fn write(
    mut sink: SplitSink<WebSocket, Message>,
    mut orders: mpsc::Receiver<ToSocket>,
    teller: &Teller,
    (shutdown, tenure): &(CancellationToken, Tenure),
) {
    let mut untold = 0;
    loop {
        let first = tokio::select! {
            order = orders.recv() => order,
            () = shutdown.cancelled() => Some(ToSocket::Close(CloseReason::GoingAway)),
        };
        if !tenure.holds() {
            return close(sink, &CloseReason::LeaseLost).await;
        }
        let (mut next, mut bytes) = (first, 0);
        // All that waits goes out with one flush.
        while let Some(order) = next {
            let message = match order {
                ToSocket::Message(message) => {
                    bytes += message.len();
                    Message::Binary(message)
                }
                ToSocket::Ping => Message::Ping(Default::default()),
                ToSocket::Close(reason) => return close(sink, &reason).await,
            };
            if sink.feed(message).await.is_err() {
                return;
            }
            next = orders.try_recv().ok();
        }
        if sink.flush().await.is_err() || orders.is_closed() && orders.is_empty() {
            return;
        }
        untold += bytes;
        if untold >= TELL_BYTES {
            if teller.tell(FromSocket::Written(untold)).await.is_err() {
                return;
            }
            untold = 0;
        }
    }
}

async fn close(mut sink: SplitSink<WebSocket, Message>, reason: &CloseReason) {
    let frame = CloseFrame { code: reason.code(), reason: reason.text().into() };
    // A node that does not read it is cut off.
    let _cut = timeout(CLOSE, sink.send(Message::Close(Some(frame)))).await;
}

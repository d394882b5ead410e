# Reads each JSON body that comes as a line of JSON, and answers what Perl's own reader makes of it.
use strict;
use warnings;
use B ();
use JSON::PP ();
use MIME::Base64 ();

$| = 1;
my $lines = JSON::PP->new->canonical;
while (my $line = <STDIN>) {
    my $body = MIME::Base64::decode_base64($lines->decode($line)->{body});
    my $object = eval { JSON::PP->new->utf8->decode($body) };
    my $users;
    if (ref $object eq 'HASH') {
        my $user = $object->{user};
        # A number is one to Perl until it is written out.
        my $is_text = defined $user && !ref $user && B::svref_2object(\$user)->FLAGS & B::SVf_POK;
        $users = exists $object->{user} ? [ $is_text ? $user : undef ] : [];
    }
    print $lines->ascii->encode({ 'perl JSON::PP' => $users }), "\n";
}
